"""A venv on the network volume, brought to local disk so that it starts at local speed."""
