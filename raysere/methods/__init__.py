"""Methods: how emotion is learned, one file for each system.

Other packages add theirs under the entry-point group ``raysere.methods``.
"""

from raysere.base.registry import Registry

METHODS = Registry(
    "method",
    "raysere.methods",
    {
        "pooled": "raysere.methods.pooled:Pooled",
        "kernel": "raysere.methods.kernel:Kernel",
        "concat": "raysere.methods.concat:Concat",
        "xattn": "raysere.methods.xattn:Xattn",
        "xattn_std": "raysere.methods.xattn_std:XattnStd",
        "deepser": "raysere.methods.deepser:DeepSer",
        "discrete_units": "raysere.methods.discrete_units:DiscreteUnits",
        "adaptation": "raysere.methods.adaptation:Adaptation",
        "layer_anchoring": "raysere.methods.layer_anchoring:LayerAnchoring",
        "quantized_codebook": "raysere.methods.quantized_codebook.method:QuantizedCodebook",
    },
)
