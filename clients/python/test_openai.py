"""OpenAI's own Python client against a running server: OPENAI_BASE_URL and OPENAI_API_KEY say where it is, EXAMPLES is a JSONL file to train on."""
import json
import os
import re
import time
import typing
import unittest

import openai
import pydantic

client = openai.OpenAI(max_retries=0)
MODEL = "demo"
FOX = [{"role": "user", "content": "What is a fox?"}]


class Models(unittest.TestCase):
    def test_list_and_retrieve(self):
        self.assertIn(MODEL, [m.id for m in client.models.list()])
        model = client.models.retrieve(MODEL)
        self.assertEqual((model.id, model.object), (MODEL, "model"))

    def test_unknown(self):
        for ask in (lambda: client.models.retrieve("nobody"),
                    lambda: client.models.delete("nobody"),
                    lambda: client.chat.completions.create(model="nobody", messages=FOX),
                    lambda: client.completions.create(model="nobody", prompt="x")):
            with self.assertRaises(openai.NotFoundError) as e:
                ask()
            self.assertEqual((e.exception.status_code, e.exception.param, e.exception.code), (404, "model", "model_not_found"))


class Completions(unittest.TestCase):
    def test_whole_and_stream(self):
        want = client.completions.create(model=MODEL, prompt="The fox", max_tokens=12, temperature=0)
        self.assertEqual(want.object, "text_completion")
        self.assertIn(want.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(want.usage.total_tokens, want.usage.prompt_tokens + want.usage.completion_tokens)
        chunks = list(client.completions.create(model=MODEL, prompt="The fox", max_tokens=12, temperature=0, stream=True,
                                                stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].text for c in chunks if c.choices), want.choices[0].text)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, want.usage)

    def test_many(self):
        got = client.completions.create(model=MODEL, prompt=["The fox", "A bee"], n=2, max_tokens=4, temperature=1, seed=1)
        self.assertEqual([c.index for c in got.choices], [0, 1, 2, 3])
        self.assertEqual(got.usage.completion_tokens, 16)

    def test_echo_and_logprobs(self):
        got = client.completions.create(model=MODEL, prompt="The fox", max_tokens=4, temperature=0, echo=True, logprobs=3).choices[0]
        self.assertTrue(got.text.startswith("The fox"))
        self.assertEqual("".join(got.logprobs.tokens), got.text)
        self.assertEqual(len(got.logprobs.tokens), len(got.logprobs.token_logprobs))
        self.assertIsNone(got.logprobs.token_logprobs[0])
        self.assertTrue(all(p <= 0 for p in got.logprobs.token_logprobs[1:]))
        self.assertTrue(all(3 <= len(t) <= 4 for t in got.logprobs.top_logprobs[1:]))
        self.assertEqual(got.logprobs.text_offset[0], 0)
        many = client.completions.create(model=MODEL, prompt="The fox", max_tokens=4, temperature=1, echo=True, logprobs=1, n=3).choices
        shown = lambda token: "" if re.fullmatch(r"<\|\w+\|>", token) else token  # a sampled special token has no text
        self.assertEqual(["".join(map(shown, c.logprobs.tokens)) for c in many], [c.text for c in many])

    def test_best_of(self):
        one = dict(model=MODEL, prompt="The fox", max_tokens=6, temperature=1, seed=3, logprobs=0)
        mean = lambda c: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs)
        every = sorted(client.completions.create(n=5, **one).choices, key=mean, reverse=True)
        best = client.completions.create(n=2, best_of=5, **one)
        self.assertEqual([c.text for c in best.choices], [c.text for c in every[:2]])
        self.assertEqual([c.index for c in best.choices], [0, 1])
        self.assertGreaterEqual(best.usage.completion_tokens, 5)
        for wrong in (dict(n=3, best_of=2), dict(best_of=2, stream=True)):
            with self.assertRaises(openai.BadRequestError) as e:
                client.completions.create(model=MODEL, prompt="x", **wrong)
            self.assertEqual(e.exception.param, "best_of")

    def test_wrong_fields(self):
        for fields, param in ((dict(suffix="end"), "suffix"), (dict(temperature=-1), "temperature"), (dict(n=0), "n"), (dict(logprobs=99), "logprobs"),
                              (dict(max_tokens="many"), "max_tokens"), (dict(logit_bias={"x": 1}), "logit_bias")):
            with self.assertRaises(openai.BadRequestError) as e:
                client.completions.create(model=MODEL, prompt="x", **fields)
            self.assertEqual((e.exception.status_code, e.exception.param), (400, param))


class Chat(unittest.TestCase):
    def test_whole_and_stream(self):
        want = client.chat.completions.create(model=MODEL, messages=FOX, max_completion_tokens=12, temperature=0)
        message = want.choices[0].message
        self.assertEqual((want.object, message.role, message.tool_calls), ("chat.completion", "assistant", None))
        chunks = list(client.chat.completions.create(model=MODEL, messages=FOX, max_completion_tokens=12, temperature=0, stream=True,
                                                     stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason], [want.choices[0].finish_reason])
        self.assertEqual(chunks[-1].usage.completion_tokens, want.usage.completion_tokens)

    def test_stream_helper(self):
        with client.chat.completions.stream(model=MODEL, messages=FOX, max_tokens=200, temperature=0) as stream:
            text = "".join(e.delta for e in stream if e.type == "content.delta")
            self.assertEqual(stream.get_final_completion().choices[0].message.content, text)

    def test_logprobs(self):
        got = client.chat.completions.create(model=MODEL, messages=FOX, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2).choices[0]
        tokens = got.logprobs.content
        self.assertTrue(b"".join(bytes(t.bytes) for t in tokens).decode().startswith(got.message.content))
        self.assertTrue(all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob <= 0 for t in tokens))

    def test_parts_stop_and_seed(self):
        ask = lambda **kw: client.chat.completions.create(model=MODEL, temperature=1, seed=5, max_tokens=16, **kw).choices[0].message.content
        parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a fox?"}]}]
        text = ask(messages=FOX)
        self.assertEqual(ask(messages=parts), text)
        self.assertEqual(ask(messages=FOX, stop=[text[4:7]]), text[:text.index(text[4:7])])

    def test_wrong_fields(self):
        for fields, param in ((dict(messages=[]), "messages"), (dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "messages[0]"),
                              (dict(messages=FOX, top_p=2), "top_p"), (dict(messages=FOX, top_logprobs=2), "top_logprobs")):
            with self.assertRaises(openai.BadRequestError) as e:
                client.chat.completions.create(model=MODEL, **fields)
            self.assertEqual(e.exception.param, param)


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"animal": {"type": "string"}}, "required": ["animal"]}}},
         {"type": "function", "function": {"name": "wait", "strict": True, "parameters": {"type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
                                                                          "required": ["days"], "additionalProperties": False}}}]


class Animal(pydantic.BaseModel):
    name: str
    legs: typing.Literal[2, 4, 6]
    tame: bool


class Tools(unittest.TestCase):
    def test_forced(self):
        ask = dict(model=MODEL, messages=FOX, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "wait"}}, max_tokens=60, temperature=0)
        choice = client.chat.completions.create(**ask).choices[0]
        self.assertEqual((choice.finish_reason, choice.message.content, len(choice.message.tool_calls)), ("tool_calls", None, 1))
        call = choice.message.tool_calls[0]
        self.assertEqual((call.type, call.function.name), ("function", "wait"))
        self.assertIn(json.loads(call.function.arguments)["days"], range(1, 10))
        with client.chat.completions.stream(**ask) as stream:
            pieces = "".join(e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta")
            final = stream.get_final_completion().choices[0]
        self.assertEqual((pieces, final.finish_reason), (call.function.arguments, "tool_calls"))
        self.assertEqual(final.message.tool_calls[0].function.parsed_arguments, json.loads(pieces))
        ask["messages"] = FOX + [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
        self.assertIsNone(client.chat.completions.create(**(ask | {"tool_choice": "none"})).choices[0].message.tool_calls)

    def test_required(self):
        got = client.chat.completions.create(model=MODEL, messages=FOX, tools=TOOLS, tool_choice="required", temperature=0, max_tokens=100, parallel_tool_calls=False)
        self.assertIn(got.choices[0].message.tool_calls[0].function.name, ("look_up", "wait"))

    def test_learnt(self):
        """The whole loop: a model that has learnt to call a tool calls it, and answers with its result."""
        talk = lambda animal: [
            {"role": "user", "content": f"What is a {animal}?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"animal": animal})}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"legs": 4}'}, {"role": "assistant", "content": "It has 4 legs, I looked it up."}]
        file = client.files.create(file=("calls.jsonl", "\n".join(json.dumps({"tools": TOOLS[:1], "messages": talk(a)}) for a in ("fox", "cow")).encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, suffix="caller", hyperparameters={"n_epochs": 60, "batch_size": 2, "learning_rate_multiplier": 0.5})
        while job.status not in ("succeeded", "failed", "cancelled"):
            time.sleep(0.1)
            job = client.fine_tuning.jobs.retrieve(job.id)
        messages = talk("cow")[:1]
        ask = lambda: client.chat.completions.create(model=job.fine_tuned_model, messages=messages, tools=TOOLS[:1], temperature=0, max_tokens=60).choices[0]
        answer = ask()
        self.assertEqual(answer.finish_reason, "tool_calls")
        call = answer.message.tool_calls[0]
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("look_up", {"animal": "cow"}))
        messages += [answer.message, {"role": "tool", "tool_call_id": call.id, "content": '{"legs": 4}'}]
        self.assertEqual(ask().message.content, "It has 4 legs, I looked it up.")

    def test_wrong_fields(self):
        for fields, param in ((dict(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"), (dict(tool_choice="required"), "tool_choice"),
                              (dict(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "none"}}), "tool_choice"),
                              (dict(functions=[{"name": "f"}]), "functions")):
            with self.assertRaises(openai.BadRequestError) as e:
                client.chat.completions.create(model=MODEL, messages=FOX, **fields)
            self.assertEqual(e.exception.param, param)


class Formats(unittest.TestCase):
    def test_schema(self):
        got = client.chat.completions.parse(model=MODEL, messages=FOX, response_format=Animal, temperature=0, max_tokens=150)
        self.assertIsInstance(got.choices[0].message.parsed, Animal)
        with client.chat.completions.stream(model=MODEL, messages=FOX, response_format=Animal, temperature=0, max_tokens=150) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_completion().choices[0].message.parsed, got.choices[0].message.parsed)

    def test_object(self):
        got = client.chat.completions.create(model=MODEL, messages=FOX, response_format={"type": "json_object"}, temperature=0, max_tokens=8)
        self.assertTrue(got.choices[0].message.content.startswith("{"))

    def test_wrong(self):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "thing"}}}}}
        with self.assertRaises(openai.BadRequestError) as e:
            client.chat.completions.create(model=MODEL, messages=FOX, response_format=schema)
        self.assertEqual(e.exception.param, "response_format.json_schema.schema")
        self.assertIn("/properties/a", e.exception.message)


class FineTuning(unittest.TestCase):
    def test_files(self):
        made = [client.files.create(file=(f"py{i}.jsonl", b'{"text": "a"}\n'), purpose="fine-tune") for i in range(3)]
        listed = [f.id for f in client.files.list(limit=1, order="asc")]  # a page a file
        self.assertEqual([f for f in listed if f in [m.id for m in made]], [m.id for m in made])
        self.assertEqual(client.files.retrieve(made[0].id), made[0])
        self.assertEqual(client.files.content(made[0].id).read(), b'{"text": "a"}\n')
        self.assertEqual(client.files.wait_for_processing(made[0].id).status, "processed")
        for m in made:
            self.assertTrue(client.files.delete(m.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            client.files.retrieve(made[0].id)

    def test_job(self):
        with open(os.environ["EXAMPLES"], "rb") as f:
            file = client.files.create(file=f, purpose="fine-tune")
        method = lambda epochs: {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 8}}}
        long = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, suffix="py-long", method=method(1000))
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, suffix="py", seed=1, method=method(2), metadata={"who": "test"})
        self.assertEqual((job.object, job.model, job.metadata), ("fine_tuning.job", MODEL, {"who": "test"}))
        self.assertEqual([j.id for j in client.fine_tuning.jobs.list(limit=1) if j.id in (job.id, long.id)], [job.id, long.id])
        self.assertEqual(client.fine_tuning.jobs.pause(long.id).id, long.id)
        self.assertEqual(client.fine_tuning.jobs.cancel(long.id).id, long.id)
        while job.status not in ("succeeded", "failed", "cancelled"):
            time.sleep(0.1)
            job = client.fine_tuning.jobs.retrieve(job.id)
        self.assertEqual((job.status, job.fine_tuned_model, job.error), ("succeeded", "py", None))
        self.assertGreater(job.trained_tokens, 0)
        while (stopped := client.fine_tuning.jobs.retrieve(long.id)).status != "cancelled":
            time.sleep(0.1)
        self.assertIsNone(stopped.fine_tuned_model)
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
        self.assertGreater(len(events), 5)
        self.assertEqual(len({e.id for e in events}), len(events))
        checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
        self.assertEqual(checkpoint.fine_tuned_model_checkpoint, "py@1")
        ask = lambda model: client.chat.completions.create(model=model, messages=FOX, temperature=0, max_tokens=12).choices[0].message.content
        self.assertEqual(ask("py"), ask("py@1"))
        self.assertNotEqual(ask("py"), ask(MODEL))
        self.assertIn("py", [m.id for m in client.models.list()])
        self.assertTrue(client.models.delete("py").deleted)
        with self.assertRaises(openai.NotFoundError):
            ask("py")

    def test_wrong_fields(self):
        file = client.files.create(file=("py.jsonl", b'{"text": "a"}\n'), purpose="fine-tune")
        for fields, kind, param in ((dict(training_file="file-none"), openai.NotFoundError, "training_file"),
                                    (dict(training_file=file.id, suffix="../x"), openai.BadRequestError, "suffix"),
                                    (dict(training_file=file.id, method={"type": "dpo"}), openai.BadRequestError, "method.type")):
            with self.assertRaises(kind) as e:
                client.fine_tuning.jobs.create(model=MODEL, **fields)
            self.assertEqual(e.exception.param, param)
        with self.assertRaises(openai.NotFoundError):
            client.fine_tuning.jobs.retrieve("ftjob-none")


if __name__ == "__main__":
    unittest.main()
