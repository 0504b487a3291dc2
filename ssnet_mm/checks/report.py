"""All checks of the table over the data sets of a config, in one pass over their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ssnet_mm.checks.finding import Check, Fault, Finding
from ssnet_mm.checks.lists import reads_folder
from ssnet_mm.checks.scan import Split, scan
from ssnet_mm.checks.splits import Totals, image_paths
from ssnet_mm.checks.table import CHECKS, OF_CONFIGS, OF_FOLDERS, OF_LISTS, OF_SAMPLES, OF_TOTALS

_ORDER = {check.name: i for i, check in enumerate(CHECKS)}
# what explains itself: with the first in a data set, the second goes without saying
_EXPLAINED = {
    'counted-from-one': ('value-outside', 'absent-class'),
    'drawn-with-255': ('absent-class',),
    'nothing-labelled': ('void-mask',),
    'stretched-mask': ('value-outside', 'absent-class', 'drawn-with-255'),
    'wrapping-mask': ('value-outside', 'absent-class'),
    'zero-label-reduced': ('absent-class',),
}


@dataclass(frozen=True)
class Report:
    """What was found, and the totals of each data set.

    Args:
        findings: Errors first; of these, causes before what follows from them.
        totals: One for each data set on this machine's disk.
        elsewhere: Where in the config the data sets stand that aren't on this machine's disk, of
            which nothing is known.
    """

    findings: list[Finding]
    totals: list[Totals]
    elsewhere: list[str]

    @property
    def errors(self) -> list[Finding]:
        """What spoils training or scores."""
        return [finding for finding in self.findings if finding.check.severity == 'error']

    @property
    def notes(self) -> list[Finding]:
        """What may be meant."""
        return [finding for finding in self.findings if finding.check.severity == 'note']

    def lines(self) -> Iterator[str]:
        """The whole report, for a person to read."""
        for totals in self.totals:
            sizes = ', '.join(f'{w}x{h} ({n})' for (w, h), n in totals.sizes.most_common(3))
            more = len(totals.sizes) - 3
            sizes += f', {more} other sizes' if more > 0 else ''
            yield f'{totals.split.where}: {totals.images} images, {sizes or "of unknown size"}'
            yield from _class_table(totals) if totals.masks else ['no mask was read']
            yield ''
        for where in self.elsewhere:
            yield f'{where}: not on this disk, not checked'
        for finding in self.findings:
            yield f'{finding.check.severity}: {finding} [{finding.check.name}]'
        yield f'{len(self.errors)} kinds of error, {len(self.notes)} of note'


def check_lists(split: Split) -> list[Finding]:
    """Only the checks of the file that lists a data set's names."""
    found = _Findings()
    for check in OF_LISTS:
        found.add(check, split, check.find(split))
    return found.ordered()


def check_names(splits: Sequence[Split]) -> list[Finding]:
    """Only the checks over several data sets, by the names of their images; no file is read."""
    totals = [Totals(s, digests={path: path for path in image_paths(s.dataset)}) for s in splits]
    found = _Findings()
    for check in OF_CONFIGS:
        found.add_pairs(check, check.find(totals))
    return found.ordered()


def check_splits(
    splits: Sequence[Split], *, wholes: Sequence[Split] = (), whole_config: bool = True
) -> Report:
    """Read every image and mask of data sets and check them.

    Args:
        splits: The data sets.
        wholes: What some of them are put together to.
        whole_config: Whether these are all the data sets of a config; where they are not, an image
            that none of them lists may be in another.
    """
    found = _Findings()
    totals = {split.where: Totals(split) for split in splits if split.local}
    for split in (*splits, *wholes):
        for check in OF_LISTS:
            found.add(check, split, check.find(split))
    for sample in scan(splits):
        totals[sample.split.where].add(sample)
        for check in OF_SAMPLES:
            found.add(check, sample.split, check.find(sample))
    for sums in totals.values():
        for check in OF_TOTALS:
            found.add(check, sums.split, check.find(sums))
    everything = list(totals.values())
    for check in OF_CONFIGS:
        found.add_pairs(check, check.find(everything))
    known = [split for split in splits if whole_config or reads_folder(split)]
    for check in OF_FOLDERS:
        found.add_pairs(check, check.find(known))
    elsewhere = [split.where for split in splits if not split.local]
    return Report(found.ordered(), everything, elsewhere)


class _Findings:
    """Faults gathered by kind and data set."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, check: Check, split: Split, faults: Iterable[Fault]) -> None:
        self.add_pairs(check, ((split, fault) for fault in faults))

    def add_pairs(self, check: Check, pairs: Iterable[tuple[Split, Fault]]) -> None:
        for split, fault in pairs:
            key = check.name, split.where
            if key not in self._found:
                numbers = dict(
                    num_classes=split.num_classes,
                    last=split.num_classes - 1,
                    void=split.ignore_index,
                )
                what, mend = check.what.format(**numbers), check.mend.format(**numbers)
                self._found[key] = Finding(check, split.where, what, mend)
            self._found[key].add(fault)

    def ordered(self) -> list[Finding]:
        said = [f for f in self._found.values() if not self._explained(f)]
        return sorted(said, key=lambda f: (f.check.severity != 'error', _ORDER[f.check.name]))

    def _explained(self, finding: Finding) -> bool:
        return any(
            (cause, finding.where) in self._found
            for cause, effects in _EXPLAINED.items()
            if finding.check.name in effects
        )


def _class_table(totals: Totals) -> Iterator[str]:
    """Of each class its share of the labelled pixels, its images, and two weights it suggests."""
    balanced, enet = totals.median_frequency_weights(), totals.enet_weights()
    width = max(5, *(len(name) for name in totals.split.classes))
    columns = f'{"class":{width}}', ' pixels', ' images', 'sqrt-median weight', 'ENet weight'
    yield '  '.join(columns)
    for i, (name, share) in enumerate(zip(totals.split.classes, totals.shares())):
        cells = f'{share:7.3%}  {totals.shown_by[i]:7}  {balanced[i]:18.2f}  {enet[i]:11.2f}'
        yield f'{name:{width}}  {cells}'
    void = totals.labels[totals.split.ignore_index] / max(sum(totals.labels.values()), 1)
    yield f'{"void":{width}}  {void:7.3%} of all pixels'
