"""What an unlearned source's text still costs the model to predict, beside text that it never saw."""
