"""JUnit's XML, as CI systems read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

FAILURE, ERROR, SKIPPED = "failure", "error", "skipped"


@dataclass(frozen=True, slots=True)
class Case:
    """One test case of a JUnit report."""

    classname: str
    name: str
    outcome: str | None = None
    """`FAILURE`, `ERROR` or `SKIPPED`; None: it passed."""
    message: str = ""
    kind: str = ""
    """The type of a failure or an error, in one word."""
    details: str = ""
    seconds: float = 0.0


def as_junit(
    name: str, cases: Sequence[Case], properties: Mapping[str, object], seconds: float
) -> str:
    """Return a document with one suite.

    Args:
        name: The name of the suite.
        cases: The test cases, in order.
        properties: The properties of the suite.
        seconds: How long the suite took.
    """

    def count(outcome: str) -> str:
        return str(sum(case.outcome == outcome for case in cases))

    suite = ET.Element(
        "testsuite",
        name=name,
        tests=str(len(cases)),
        failures=count(FAILURE),
        errors=count(ERROR),
        skipped=count(SKIPPED),
        time=f"{seconds:.3f}",
    )
    property_list = ET.SubElement(suite, "properties")
    for key, value in properties.items():
        ET.SubElement(property_list, "property", name=key, value=_xml(str(value)))
    for case in cases:
        element = ET.SubElement(
            suite,
            "testcase",
            classname=_xml(case.classname),
            name=_xml(case.name),
            time=f"{case.seconds:.3f}",
        )
        if case.outcome is not None:
            outcome = ET.SubElement(element, case.outcome, message=_xml(case.message))
            if case.outcome != SKIPPED:
                outcome.set("type", _xml(case.kind))
                outcome.text = _xml(case.details)
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Return a text in which the characters that XML 1.0 cannot hold are replaced."""
    return "".join(
        c if c in "\t\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
