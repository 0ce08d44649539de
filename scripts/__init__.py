"""The commands that people run; each is a few lines that call one of the other folders."""
