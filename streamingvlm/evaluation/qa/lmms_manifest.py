"""The entry point for lmms-eval, which loads it at every start for any model: it imports almost nothing."""

MODEL_NAME = "streamingvlm"
CLASS_PATH = "streamingvlm.evaluation.qa.lmms.StreamingLMM"


def manifest():
    """Return our entry in lmms-eval's registry, a ``ModelManifest``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, simple_class_path=CLASS_PATH)
