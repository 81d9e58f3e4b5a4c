"""Tasks: render a question, parse a reply, score the answer."""

from fedloom.tasks.caption import CAPTION
from fedloom.tasks.grounding import GROUNDING
from fedloom.tasks.multiple_choice import CHOICE
from fedloom.tasks.prompts import AGNOSTIC, PROMPTS
from fedloom.tasks.task import UNPARSED, Answer, AnswerForm, Metric, Task, Unparsed, clean_text
from fedloom.tasks.vqa import VQA

TASKS: dict[str, Task] = {"choice": CHOICE, "vqa": VQA, "caption": CAPTION, "grounding": GROUNDING}

__all__ = [
    "AGNOSTIC",
    "PROMPTS",
    "TASKS",
    "UNPARSED",
    "Answer",
    "AnswerForm",
    "Metric",
    "Task",
    "Unparsed",
    "clean_text",
]
