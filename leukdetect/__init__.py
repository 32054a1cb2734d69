"""What a model file is and what it says: images, contract, decision, drift, similar cases.

No web framework, no TensorFlow, nothing of `pipeline` or `serving`.
"""
