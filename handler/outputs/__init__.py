"""What a job produced, and where it goes: the reply, the volume, a bucket."""

from handler.outputs.delivery import Delivery
from handler.outputs.job_outputs import GRACE_SECONDS, DeliveryOptions, JobOutputs
from handler.outputs.pictures import Previews
from handler.outputs.produced import Produced, produced

__all__ = [
    "GRACE_SECONDS",
    "Delivery",
    "DeliveryOptions",
    "JobOutputs",
    "Previews",
    "Produced",
    "produced",
]
