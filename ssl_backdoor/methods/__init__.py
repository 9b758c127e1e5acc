from ssl_backdoor.methods.base import Batch, LossOutput, SSLMethod
from ssl_backdoor.methods.build import build_backbone

__all__ = ["Batch", "LossOutput", "SSLMethod", "build_backbone"]
