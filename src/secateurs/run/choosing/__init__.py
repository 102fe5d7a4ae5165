"""Which kernel each layer gets, by timing candidates on this machine."""
