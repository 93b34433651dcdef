"""python -m aqnet.evaluation.ablation"""

from aqnet.errors import run
from aqnet.evaluation.studies.ablation import main

if __name__ == "__main__":
    run(main)
