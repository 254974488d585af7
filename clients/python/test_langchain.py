"""LangChain's ChatOpenAI and LiteLLM against a running server: OPENAI_BASE_URL and OPENAI_API_KEY say where it is."""
import os
import typing
import unittest

import litellm
import pydantic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI


@tool
def wait(days: typing.Literal[1, 2, 3]) -> str:
    """Waits some days."""
    return f"waited {days}"


class Animal(pydantic.BaseModel):
    """An animal."""
    legs: typing.Literal[2, 4, 6]
    tame: bool


class LangChain(unittest.TestCase):
    model = ChatOpenAI(model="demo", temperature=0, max_tokens=60, max_retries=0)

    def test_invoke_and_stream(self):
        chain = ChatPromptTemplate.from_messages([("system", "Answer in simple words."), ("human", "What is a {animal}?")]) | self.model
        said = chain.invoke({"animal": "fox"})
        self.assertTrue(said.content)
        self.assertGreater(said.usage_metadata["output_tokens"], 0)
        self.assertEqual("".join(c.content for c in chain.stream({"animal": "fox"})), said.content)

    def test_batch(self):
        said = self.model.batch(["What is a fox?", [SystemMessage("You are Bee, a small and friendly helper."), HumanMessage("What is a cow?")]])
        self.assertEqual(len({m.content for m in said}), 2)

    def test_tools(self):
        model = self.model.bind_tools([wait], tool_choice="wait")
        said = model.invoke("Wait!")
        self.assertEqual([c["name"] for c in said.tool_calls], ["wait"])
        self.assertIn(said.tool_calls[0]["args"]["days"], (1, 2, 3))
        whole = None
        for chunk in model.stream("Wait!"):
            whole = chunk if whole is None else whole + chunk
        self.assertEqual([c["args"] for c in whole.tool_calls], [c["args"] for c in said.tool_calls])
        result = wait.invoke(said.tool_calls[0])
        self.assertIsInstance(result, ToolMessage)
        self.assertTrue(self.model.invoke([HumanMessage("Wait!"), said, result]).content)

    def test_structured_output(self):
        for method in ("json_schema", "function_calling"):
            self.assertIsInstance(self.model.with_structured_output(Animal, method=method).invoke("What is a fox?"), Animal)

    def test_completion(self):
        self.assertTrue(OpenAI(model="demo", temperature=0, max_tokens=8).invoke("The fox"))


class LiteLLM(unittest.TestCase):
    ask = dict(model="openai/demo", api_base=os.environ["OPENAI_BASE_URL"], messages=[{"role": "user", "content": "What is a fox?"}], temperature=0, max_tokens=40, num_retries=0)

    def test_whole_and_stream(self):
        said = litellm.completion(**self.ask).choices[0].message.content
        self.assertTrue(said)
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in litellm.completion(stream=True, **self.ask)), said)

    def test_tools(self):
        tools = [{"type": "function", "function": {"name": "wait", "parameters": {"type": "object", "properties": {"days": {"enum": [1, 2, 3]}}, "required": ["days"]}}}]
        said = litellm.completion(tools=tools, tool_choice={"type": "function", "function": {"name": "wait"}}, **self.ask).choices[0]
        self.assertEqual((said.finish_reason, said.message.tool_calls[0].function.name), ("tool_calls", "wait"))

    def test_errors(self):
        with self.assertRaises(litellm.NotFoundError):
            litellm.completion(**(self.ask | {"model": "openai/nobody"}))
        with self.assertRaises(litellm.BadRequestError):
            litellm.completion(**(self.ask | {"temperature": -1}))


if __name__ == "__main__":
    unittest.main()
