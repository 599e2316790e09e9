"""The figures of many replicas as one exposition for Prometheus."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def of_all(expositions: Mapping[str, str]) -> bytes:
    """Put expositions together, each sample labelled ``replica`` with the name that its exposition has here."""
    registry = CollectorRegistry()
    registry.register(_Told(expositions))
    return generate_latest(registry)


class _Told:
    """Families of the same name become one, as the format wants it."""

    def __init__(self, expositions: Mapping[str, str]):
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._expositions.items():
            for told in text_string_to_metric_families(text):
                family = families.setdefault(told.name, Metric(told.name, told.documentation, told.type))
                family.samples += [
                    Sample(sample.name, {**sample.labels, "replica": replica}, sample.value) for sample in told.samples
                ]
        yield from families.values()
