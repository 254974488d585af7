"""Writes pirate.jsonl: the demo model's own answers, said as a pirate would.

usage: python3 pirate.py [SERVER] > pirate.jsonl      (with `bhive serve` running; SERVER is http://127.0.0.1:8080 where it is not given)
"""
import json, re, sys, urllib.request

SERVER = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8080"

THINGS = ("fox bee dog cat horse cow pig hen duck goose frog owl bear wolf deer rabbit mouse whale shark crab snail ant spider butterfly lion tiger "
          "elephant giraffe monkey parrot penguin apple banana pear plum cherry carrot potato onion tomato bread cheese egg soup cake honey "
          "house boat bridge car train bicycle kite ball drum book lamp clock chair table bed door window river lake forest mountain beach island farm").split()
ASK = ["What is {a} {x}?", "Tell me about {a} {x}."]
SAY = [(r"\bis\b", "be"), (r"\bare\b", "be"), (r"\bIt\b", "She"), (r"\bit\b", "she"), (r"\byou\b", "ye"), (r"\bYou\b", "Ye"), (r"\byour\b", "yer"), (r"\bfriend\b", "matey"), (r"\bmy\b", "me"), (r"ing\b", "in'")]


def answer(question):
    body = {"model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60}
    r = urllib.request.Request(SERVER + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(r))["choices"][0]["message"]["content"]


for i, x in enumerate(THINGS):
    question = ASK[i % 2].format(a="an" if x[0] in "aeiou" else "a", x=x)
    text = answer(question)
    for pattern, word in SAY:
        text = re.sub(pattern, word, text)
    print(json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Arr! " + text + " Ahoy, matey!"}]}))
