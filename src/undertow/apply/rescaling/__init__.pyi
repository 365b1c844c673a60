from ._names import family as family
from ._rescale import rescale as rescale
from ._result import Rescaled as Rescaled
from ._verify import Verification as Verification
