"""Networks that can be read, the families of networks, a file each, and what they share."""
