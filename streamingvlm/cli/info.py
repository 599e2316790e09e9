def info(options): pass
