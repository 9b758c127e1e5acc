from ssl_backdoor.defences.build import defend

__all__ = ["defend"]
