// Answers queries as the search of the built site does, with the theme's own code.
//
// Usage: node search.cjs SITE < QUERIES, a JSON list of strings.
// Prints a JSON list: for each query, the locations of the results, the best one first.

const fs = require("node:fs")
const path = require("node:path")
const vm = require("node:vm")

const site = process.argv[2]
const workers = path.join(site, "assets/javascripts/workers")
const [file] = fs.readdirSync(workers).filter((name) => /^search\..*\.min\.js$/.test(name))

const answers = []
let wake
const worker = {
    addEventListener: (_, listener) => (worker.listener = listener),
    console,
    postMessage: (message) => { answers.push(message); wake() },
}
worker.self = worker
vm.runInNewContext(fs.readFileSync(path.join(workers, file), "utf8"), worker)

async function ask(type, data) {
    const answered = new Promise((resolve) => (wake = resolve))
    worker.listener({ data: { type, data } })
    await answered
    return answers.pop().data
}

async function main() {
    const index = JSON.parse(fs.readFileSync(path.join(site, "search/search_index.json"), "utf8"))
    await ask(0, { ...index, options: { suggest: false } })
    const results = []
    for (const query of JSON.parse(fs.readFileSync(0, "utf8"))) {
        const { items } = await ask(2, query)
        // The best result of each page, in the order of the pages.
        results.push(items.map((group) => [...group].sort((a, b) => b.score - a.score)[0].location))
    }
    console.log(JSON.stringify(results))
}

main()
