from undertow.measure.saliency._certify import certify as certify
