"""Steadier class maps: a pixel does not give up its class at once. Off unless asked for.

    Kind          Models        What a pixel shows
    hysteresis    any           its class, until the model has not given that class for TIME; then the model's
    exponential   with logits   the largest of its class probabilities' moving averages, of half-life TIME

TIME means the same in both: a pixel of which the model is sure shows a change that lasts TIME later. So moving edges
lag by TIME, which is the price. Time is that of the stream, not a count of results, so that frames which a live source
passes over change nothing. After an outage of TIME hysteresis has nothing of before left, the average half; where the
source was opened again, neither has any. Where results are further apart than TIME, hysteresis does nothing.

Another kind is a class with the method of `Smoother`, in a file here, and a line in `SMOOTHERS`.
"""

from deploy.smoothing.smoother import SMOOTHERS, Smoother, Smoothing, StreamSmoother, make_smoother

__all__ = ["SMOOTHERS", "Smoother", "Smoothing", "StreamSmoother", "make_smoother"]
