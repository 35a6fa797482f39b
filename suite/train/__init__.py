"""One file a stage and nothing else: this folder is the list of stages."""
