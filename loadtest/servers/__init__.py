"""Which servers can be measured, and how people name them."""
