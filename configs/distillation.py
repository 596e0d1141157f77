"""A small decoder learns from a trained one: Hinton et al. 2015, arXiv:1503.02531.

The argument is the teacher's run directory, whose tokenizer the student takes. Without one it is
runs/default, which `python train.py` makes and which reads the tokens that the default corpus gives by
itself. The student has half of the default's width and depth.

Command:   python train.py --config configs/distillation.py:runs/default --workdir runs/student
Hardware:  2 CPU cores, 3 minutes
"""

from configs import default, take_tokenizer


def get_config(teacher=None):
  config = default.get_config()
  with config.unlocked():
    config.objective.name = "distillation"
    config.objective.teacher = teacher or "runs/default"  # a run directory
    config.objective.alpha = 0.5  # weight of the soft loss; the hard one has the rest
    config.objective.temperature = 2.0  # of teacher and student in the soft loss
    config.model.width = 64
    config.model.depth = 2
    if teacher is not None:
      take_tokenizer(config, teacher)
  return config
