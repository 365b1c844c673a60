"""Saliency maps, scored for what they keep and for what they make up, and masks that are learned.

2211.02912: masks can be found for wrong labels, too. A map is *complete* if its best pixels keep
the probability of its label, and *sound* if they do not raise that of a label beyond the input's.
"""

from undertow.measure.saliency._attributions import Method as Method
from undertow.measure.saliency._backgrounds import Background as Background
from undertow.measure.saliency._baselines import absolute_gradient as absolute_gradient
from undertow.measure.saliency._baselines import gradient_x_input as gradient_x_input
from undertow.measure.saliency._baselines import integrated_gradients as integrated_gradients
from undertow.measure.saliency._baselines import random_map as random_map
from undertow.measure.saliency._baselines import smooth_grad as smooth_grad
from undertow.measure.saliency._certificates import Certificates as Certificates
from undertow.measure.saliency._certify import LearnedMasks as LearnedMasks
from undertow.measure.saliency._certify import certify as certify
from undertow.measure.saliency._evaluate import completeness as completeness
from undertow.measure.saliency._evaluate import evaluate as evaluate
from undertow.measure.saliency._evaluate import soundness as soundness
from undertow.measure.saliency._evaluation import Curves as Curves
from undertow.measure.saliency._evaluation import Evaluation as Evaluation
from undertow.measure.saliency._sanity import SanityChecks as SanityChecks
from undertow.measure.saliency._sanity import sanity_checks as sanity_checks
from undertow.measure.saliency._scores import Score as Score

__all__ = [
    "Background",
    "Certificates",
    "Curves",
    "Evaluation",
    "LearnedMasks",
    "Method",
    "SanityChecks",
    "Score",
    "absolute_gradient",
    "certify",
    "completeness",
    "evaluate",
    "gradient_x_input",
    "integrated_gradients",
    "random_map",
    "sanity_checks",
    "smooth_grad",
    "soundness",
]
