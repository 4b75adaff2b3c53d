"""What both front doors share in reading a model: options, angles with one copy, valid parameters."""
