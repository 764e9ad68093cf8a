"""Where models come from. A source turns a link into a `Remote`, with the credential that belongs
there and words for its refusals; fetching itself is the same for all."""

__all__ = ["base", "civitai", "https", "huggingface"]
