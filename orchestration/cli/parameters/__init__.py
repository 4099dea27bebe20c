"""How a command declares its parameters: once, as the fields of a request; and the options that several share."""
