// OpenAI's own JavaScript client against a running server: OPENAI_BASE_URL and OPENAI_API_KEY say where it is, EXAMPLES is a JSONL file to train on.
import assert from 'node:assert/strict'
import { createReadStream } from 'node:fs'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import OpenAI, { toFile } from 'openai'

const client = new OpenAI({ maxRetries: 0 })
const model = 'demo'
const messages = [{ role: 'user', content: 'What is a fox?' }]
const all = async (pages) => { const out = []; for await (const item of pages) out.push(item); return out }

test('models', async () => {
  assert.ok((await all(client.models.list())).some((m) => m.id === model))
  assert.equal((await client.models.retrieve(model)).object, 'model')
  for (const ask of [() => client.models.retrieve('nobody'), () => client.models.delete('nobody'), () => client.chat.completions.create({ model: 'nobody', messages })])
    await assert.rejects(ask(), (e) => e instanceof OpenAI.NotFoundError && e.status === 404 && e.param === 'model' && e.code === 'model_not_found')
})

test('completions', async () => {
  const ask = { model, prompt: 'The fox', max_tokens: 12, temperature: 0 }
  const want = await client.completions.create(ask)
  assert.equal(want.object, 'text_completion')
  const chunks = await all(await client.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }))
  assert.equal(chunks.map((c) => c.choices[0]?.text ?? '').join(''), want.choices[0].text)
  assert.deepEqual(chunks.at(-1).usage, want.usage)
  const echoed = (await client.completions.create({ ...ask, echo: true, logprobs: 2 })).choices[0]
  assert.equal(echoed.logprobs.tokens.join(''), echoed.text)
  assert.equal((await client.completions.create({ ...ask, temperature: 1, n: 2, best_of: 3 })).choices.length, 2)
  for (const [fields, param] of [[{ suffix: 'x' }, 'suffix'], [{ temperature: -1 }, 'temperature'], [{ best_of: 0 }, 'best_of'], [{ n: 'two' }, 'n']])
    await assert.rejects(client.completions.create({ ...ask, ...fields }), (e) => e instanceof OpenAI.BadRequestError && e.status === 400 && e.param === param)
})

test('chat', async () => {
  const ask = { model, messages, max_completion_tokens: 200, temperature: 0 }
  const want = await client.chat.completions.create(ask)
  assert.equal(want.choices[0].message.role, 'assistant')
  const chunks = await all(await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } }))
  assert.equal(chunks.map((c) => c.choices[0]?.delta.content ?? '').join(''), want.choices[0].message.content)
  assert.equal(chunks.at(-1).usage.total_tokens, want.usage.total_tokens)
  const helper = client.chat.completions.stream(ask)
  assert.equal(await helper.finalContent(), want.choices[0].message.content)
  assert.equal((await helper.finalChatCompletion()).choices[0].finish_reason, want.choices[0].finish_reason)
  const tokens = (await client.chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content
  assert.ok(tokens.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2))
  for (const [fields, param] of [[{ messages: [] }, 'messages'], [{ messages: [{ role: 'user', content: 7 }] }, 'messages[0]'], [{ top_p: 2 }, 'top_p']])
    await assert.rejects(client.chat.completions.create({ ...ask, ...fields }), (e) => e instanceof OpenAI.BadRequestError && e.param === param)
})

test('tools', async () => {
  const tools = [{ type: 'function', function: { name: 'wait', strict: true, parameters: { type: 'object', properties: { days: { type: 'integer', minimum: 1, maximum: 9 } }, required: ['days'], additionalProperties: false } } }]
  const ask = { model, messages, tools, tool_choice: { type: 'function', function: { name: 'wait' } }, max_tokens: 60, temperature: 0 }
  const { message, finish_reason } = (await client.chat.completions.create(ask)).choices[0]
  assert.equal(finish_reason, 'tool_calls')
  assert.equal(message.content, null)
  assert.equal(message.tool_calls.length, 1)
  const { days } = JSON.parse(message.tool_calls[0].function.arguments)
  assert.ok(days >= 1 && days <= 9)
  const streamed = await client.chat.completions.stream(ask).finalMessage()
  assert.deepEqual(streamed.tool_calls.map((c) => c.function.arguments), [message.tool_calls[0].function.arguments])
  let ran = 0
  const runner = client.chat.completions.runTools({ ...ask, tools: [{ type: 'function', function: { ...tools[0].function, parse: JSON.parse, function: async (a) => { ran = a.days; return 'done' } } }] }, { maxChatCompletions: 1 })
  await runner.done()
  assert.equal(ran, days)
  await assert.rejects(client.chat.completions.create({ ...ask, tools: [{ type: 'custom', custom: { name: 'x' } }] }), (e) => e.param === 'tools[0].type')
})

test('JSON schema', async () => {
  const schema = { type: 'object', properties: { name: { type: 'string' }, legs: { enum: [2, 4, 6] } }, required: ['name', 'legs'], additionalProperties: false }
  const ask = { model, messages, max_tokens: 150, temperature: 0, response_format: { type: 'json_schema', json_schema: { name: 'animal', strict: true, schema } } }
  const parsed = (await client.chat.completions.parse(ask)).choices[0].message.parsed
  assert.equal(typeof parsed.name, 'string')
  assert.ok([2, 4, 6].includes(parsed.legs))
  ask.response_format.json_schema.schema = { type: 'thing' }
  await assert.rejects(client.chat.completions.create(ask), (e) => e instanceof OpenAI.BadRequestError && e.param === 'response_format.json_schema.schema')
})

test('a stream that is left', async () => {
  const stream = await client.chat.completions.create({ model, messages, stream: true, max_tokens: 800, ignore_eos: true })
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break
  assert.equal(stream.controller.signal.aborted, true)
})

test('files', async () => {
  const made = []
  for (let i = 0; i < 3; i++) made.push(await client.files.create({ file: await toFile(Buffer.from('{"text": "a"}\n'), `js${i}.jsonl`), purpose: 'fine-tune' }))
  const ids = made.map((f) => f.id)
  const listed = (await all(client.files.list({ limit: 1, order: 'asc' }))).map((f) => f.id) // a page a file
  assert.deepEqual(listed.filter((id) => ids.includes(id)), ids)
  assert.deepEqual(await client.files.retrieve(ids[0]), made[0])
  assert.equal(await (await client.files.content(ids[0])).text(), '{"text": "a"}\n')
  for (const id of ids) assert.equal((await client.files.delete(id)).deleted, true)
  await assert.rejects(client.files.retrieve(ids[0]), OpenAI.NotFoundError)
})

test('fine-tuning jobs', async () => {
  const file = await client.files.create({ file: createReadStream(process.env.EXAMPLES), purpose: 'fine-tune' })
  const method = (n_epochs) => ({ type: 'supervised', supervised: { hyperparameters: { n_epochs, batch_size: 8 } } })
  const long = await client.fineTuning.jobs.create({ model, training_file: file.id, suffix: 'js-long', method: method(1000) })
  let job = await client.fineTuning.jobs.create({ model, training_file: file.id, suffix: 'js', method: method(2) })
  assert.deepEqual((await all(client.fineTuning.jobs.list({ limit: 1 }))).map((j) => j.id).filter((id) => id === job.id || id === long.id), [job.id, long.id])
  await client.fineTuning.jobs.cancel(long.id)
  while (!['succeeded', 'failed', 'cancelled'].includes(job.status)) {
    await sleep(100)
    job = await client.fineTuning.jobs.retrieve(job.id)
  }
  assert.equal(job.status, 'succeeded')
  assert.equal(job.fine_tuned_model, 'js')
  while ((await client.fineTuning.jobs.retrieve(long.id)).status !== 'cancelled') await sleep(100)
  const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 5 }))
  assert.ok(events.length > 5 && new Set(events.map((e) => e.id)).size === events.length)
  assert.equal((await client.fineTuning.jobs.checkpoints.list(job.id)).data[0].fine_tuned_model_checkpoint, 'js@1')
  const ask = async (model) => (await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12 })).choices[0].message.content
  assert.notEqual(await ask('js'), await ask(model))
  assert.equal((await client.models.delete('js')).deleted, true)
  await assert.rejects(ask('js'), OpenAI.NotFoundError)
  await assert.rejects(client.fineTuning.jobs.create({ model, training_file: 'file-none' }), (e) => e.param === 'training_file')
})
