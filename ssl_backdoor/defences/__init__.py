"""One file per defence; see ``ssl_backdoor.specs.defence`` for what one is."""
