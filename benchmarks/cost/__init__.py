"""What a fit costs against NUTS and other samplers: one command, every cell in a process of its own."""
