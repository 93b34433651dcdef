"""aqnet: a plain-PyTorch distributed trainer for air quality forecasts."""

__version__ = "0.1.0"
