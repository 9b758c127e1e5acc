"""One file per kind of trigger; see ``ssl_backdoor.specs.trigger`` for what one is."""
