"""The network: backbones, classifier, augmentation, views, training, conversion to ONNX."""
