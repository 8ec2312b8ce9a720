# Commands without Celery: what a Ruby program sends and reads with bunny.   ruby producer.rb BROKER_URL PREFIX
# Prints one JSON object: the answer to each command, by its name.

require "bunny"
require "json"
require "securerandom"

url, prefix = ARGV
connection = Bunny.new(url, logger: Logger.new($stderr)).start
channel = connection.create_channel
channel.confirm_select
replies = channel.queue("ruby-#{SecureRandom.uuid}", exclusive: true)
sent = {}

# Protocol 2: name and id stand in the headers, the body is arguments, keywords and what follows.
two = lambda do |name, task, args, keywords = {}, headers = {}|
  id = SecureRandom.uuid
  sent[id] = name
  channel.default_exchange.publish(
    JSON.generate([args, keywords, { callbacks: nil, errbacks: nil, chain: nil, chord: nil }]),
    routing_key: "filestorage", content_type: "application/json", content_encoding: "utf-8", persistent: true,
    correlation_id: id, reply_to: replies.name, headers: { lang: "rb", task: "filestorage.#{task}", id: id }.merge(headers)
  )
end

# Protocol 1: all of it stands in the body.
one = lambda do |name, task, args, keywords = {}|
  id = SecureRandom.uuid
  sent[id] = name
  channel.default_exchange.publish(
    JSON.generate(task: "filestorage.#{task}", id: id, args: args, kwargs: keywords, retries: 0),
    routing_key: "filestorage", content_type: "application/json", content_encoding: "utf-8", persistent: true,
    correlation_id: id, reply_to: replies.name
  )
end

answers = {}
wait = lambda do |count|
  deadline = Time.now + 30
  while answers.size < count && Time.now < deadline
    _, properties, body = replies.pop
    if body.nil?
      sleep 0.01
    else
      answer = JSON.parse(body)
      raise "not the id of the command" unless properties.correlation_id == answer["task_id"]
      answers[sent.fetch(answer["task_id"])] = answer
    end
  end
  raise "#{answers.size} answers of #{count}: #{answers.keys}" unless answers.size == count
end

two.call("store", "store", ["#{prefix}/two", { "n" => 2**70, "text" => "ruby ♦" }], { metadata: { "from" => "ruby" } })
one.call("store, protocol 1", "store", ["#{prefix}/one", "value"])
wait.call(2)
two.call("retrieve", "retrieve", ["#{prefix}/one"])
one.call("retrieve, protocol 1", "retrieve", [], { key: "#{prefix}/two" })
two.call("error", "verify", ["#{prefix}/missing"])
one.call("error, protocol 1", "retrieve", ["../bad"])
# What a header may be in another language: a time of its own type, a number of another width, nothing.
two.call("headers", "exists", ["#{prefix}/one"], {}, { retries: 0, "x-trace" => 1.5, "sent" => Time.now, "none" => nil, timelimit: [30, nil] })
wait.call(7)
channel.wait_for_confirms
connection.close
puts JSON.generate(answers)
