"""python -m aqnet.data.prepare"""

from aqnet.data.prepare.run import main
from aqnet.errors import run

if __name__ == "__main__":
    run(main)
