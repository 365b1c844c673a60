from ._forecast import forecast as forecast
from ._records import Comparison as Comparison
from ._records import compare_records as compare_records
from ._result import Forecast as Forecast
from ._result import LayerForecast as LayerForecast
from ._schedule import lr_factors as lr_factors
