// Compares contracts/artifacts/ with what forge compiled to out/, or, with --write, rewrites it.
import { readFileSync, writeFileSync } from 'node:fs';

const CONTRACTS = ['TNZO', 'Faucet', 'ProviderRegistry', 'PaymentChannels'];
/** Bytes of code that chains accept at most (EIP-170). */
const MAX_CODE = 24_576;

const write = process.argv.includes('--write');
const here = new URL('../', import.meta.url);
let different = 0;

for (const contractName of CONTRACTS) {
  const compiled = JSON.parse(readFileSync(new URL(`out/${contractName}.sol/${contractName}.json`, here)));
  const artifact = {
    contractName,
    abi: compiled.abi,
    bytecode: compiled.bytecode.object,
    deployedBytecode: compiled.deployedBytecode.object,
  };
  const size = (artifact.deployedBytecode.length - 2) / 2;
  if (size > MAX_CODE) throw new Error(`${contractName} has ${size} bytes of code; chains take ${MAX_CODE}`);

  const file = new URL(`artifacts/${contractName}.json`, here);
  const text = `${JSON.stringify(artifact, null, 2)}\n`;
  if (write) {
    writeFileSync(file, text);
    console.log(`${contractName}: ${size} bytes of code`);
    continue;
  }
  const committed = readFileSync(file, 'utf8');
  if (committed === text) {
    console.log(`${contractName}: as compiled, ${size} bytes of code`);
    continue;
  }
  different += 1;
  const old = JSON.parse(committed);
  const parts = Object.keys(artifact).filter((part) => JSON.stringify(old[part]) !== JSON.stringify(artifact[part]));
  console.error(`${contractName}: artifacts/ differs from the sources in ${parts.join(', ') || 'its layout'}`);
}

if (different > 0) {
  console.error('run script/contracts build and commit contracts/artifacts');
  process.exit(1);
}
