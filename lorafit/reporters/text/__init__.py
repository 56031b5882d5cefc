"""Texts that the terminal and the HTML pages share."""
