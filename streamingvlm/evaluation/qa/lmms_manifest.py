"""What lmms-eval reads at its start, whichever model it is to run: as little as can be."""

MODEL_NAME = "streamingvlm"
CLASS_PATH = "streamingvlm.evaluation.qa.lmms.StreamingLMM"


def manifest():
    """Name our model to lmms-eval's registry, as a ``ModelManifest`` of its own."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, simple_class_path=CLASS_PATH)
