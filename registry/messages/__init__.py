"""What a message may show: text from data that is safe on a terminal (`shown`), and no secrets (`masking`)."""
