"""The command ``streamingvlm``: verbs, their words and their output. The only importer of Hydra, omegaconf and wandb.

main.py             picks the verb, runs it, prints an error as one line
verbs.py            each verb: its configuration, its function, its examples
command_line.py     words to overrides of the configuration
configurations.py   finds and composes the files of configs/
meanings.py         what each option means, read from those files
help_page.py        --help, and docs/options.md
stream.py, ...      a verb each
"""
