"""python -m aqnet.plan"""

from aqnet.errors import run
from aqnet.plan.run import main

if __name__ == "__main__":
    run(main)
