"""What Limbeck claims about itself, measured: every module here prints its table and writes JSON beside it."""
