"""How far the end has come: the signals, the state, and the one wait of the main flow."""
