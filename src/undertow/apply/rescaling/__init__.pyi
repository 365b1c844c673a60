from ._configs import family as family
from ._rescale import Rescaled as Rescaled
from ._rescale import rescale as rescale
from ._verify import Verification as Verification
