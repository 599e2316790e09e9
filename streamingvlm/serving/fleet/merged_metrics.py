"""Merge the metrics of many replicas into one Prometheus exposition."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def merge_expositions(expositions: Mapping[str, str]) -> bytes:
    """Merge expositions by replica name; each sample gets the label ``replica``."""
    registry = CollectorRegistry()
    registry.register(_MergedCollector(expositions))
    return generate_latest(registry)


class _MergedCollector:
    """Joins metric families of the same name: the format allows each name once."""

    def __init__(self, expositions: Mapping[str, str]):
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._expositions.items():
            for parsed in text_string_to_metric_families(text):
                family = families.setdefault(parsed.name, Metric(parsed.name, parsed.documentation, parsed.type))
                family.samples += [
                    Sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
                    for sample in parsed.samples
                ]
        yield from families.values()
