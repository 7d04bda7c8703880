"""From images of any kind and size to results: the doors, and the loop behind them."""

from fapn_zoo.predict.predict import predict, predict_each

__all__ = ["predict", "predict_each"]
