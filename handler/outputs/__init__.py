"""What a job produced, and where it goes: the reply, the volume, a bucket."""

from handler.outputs.delivery import GRACE_SECONDS, Delivery, JobOutputs
from handler.outputs.results import DeliveryOptions, Produced, produced

__all__ = [
    "GRACE_SECONDS",
    "Delivery",
    "DeliveryOptions",
    "JobOutputs",
    "Produced",
    "produced",
]
