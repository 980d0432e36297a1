"""The oldest libraries that settings.ini allows, as constraints for pip:

    python tools/oldest.py > oldest.txt
    python -m pip install --constraint oldest.txt --editable '.[dev]'"""
import re
from configparser import ConfigParser
from pathlib import Path

def oldest(requirements):
    "`name==version` for each requirement that has a lower bound."
    for requirement in requirements.split():
        bound = re.match(r'([\w.-]+)(?:\[\w+\])?[^;]*?[=>]=([\w.]+)', requirement)
        if bound: yield f'{bound[1]}=={bound[2]}'

if __name__=='__main__':
    settings = ConfigParser(delimiters=['='])
    settings.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
    print(*oldest(settings['DEFAULT']['requirements']), sep='\n')
