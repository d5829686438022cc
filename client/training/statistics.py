"""The exchange after the last round: a site's part in the encoder's BatchNorm statistics."""

from client.training.round import TrainingContext
from foundation.progress import track
from ssl_methods.encoders.statistics import estimate_statistics, plain_batches


def estimate_round(context: TrainingContext) -> None:
    """Estimate the encoder's statistics in place: one pass over the site's training images as evaluation sees them."""
    method, store = context.method.to(context.device), context.store
    batches = plain_batches(len(store), store.batch, context.study.image, context.device)
    estimate_statistics(method.encoder, track(batches, f"{context.site}, statistics"))
