"""Attention: its forms, the blocks they work in, the scores they share."""
